"""The parts of the YAML specification: strict reading, checking, writing, building, and other formats of trees."""
