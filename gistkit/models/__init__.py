"""Model families: which are supported, what each must know about gists, and how they are loaded."""
