"""How fast the program is, beside straightforward ways of doing the same; run from the checkout's root."""
