"""Data: drawing, reading, writing and judging puzzles. Knows no models."""
