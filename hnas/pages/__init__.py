"""Write results as HTML pages of one file: no network, no library, readable on a phone and on paper."""
