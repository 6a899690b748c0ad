"""Published procedures that divide tasks among networks, from nothing to networks that were tested, and ours."""
