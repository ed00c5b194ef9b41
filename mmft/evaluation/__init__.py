"""Measures of what was said and of how it was judged; nothing here trains."""
