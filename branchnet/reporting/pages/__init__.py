"""The offline HTML page of a report.

Its tables and pictures come from the rest of the room.
"""
