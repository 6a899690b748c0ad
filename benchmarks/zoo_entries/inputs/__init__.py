"""What the networks are shown: crops of faces, Russian sentences, lines of text. Always the same for a folder."""
