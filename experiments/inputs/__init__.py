"""How rows become what a network reads: texts, words, images, recordings."""
