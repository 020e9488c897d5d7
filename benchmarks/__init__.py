"""The program's speed beside straightforward ways of doing the same; run from the checkout."""
