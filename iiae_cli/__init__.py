"""Cross-domain disentanglement with the Interaction Information Auto-Encoder (Hwang et al., NeurIPS 2020)."""

__version__ = "0.1.0"
