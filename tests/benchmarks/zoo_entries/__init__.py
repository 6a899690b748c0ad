"""The zoo's readers, on tiny files of each format that the tests write themselves."""
