"""The published networks in PyTorch, each with a function that gives it the weights of a file. No inputs here."""
