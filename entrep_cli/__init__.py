"""entrep: from a folder of ENT endoscopy images to validated challenge submissions."""

__version__ = "0.1.0"
