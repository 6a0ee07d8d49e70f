"""Guides: the families of posteriors over LoRA-A, and draws from them."""
