"""Readers: one module per kind of file; `data_loaders.detect` lists their formats."""
