"""The simulator: the real cores of Chime in a world made of one random source. See README.md."""
