"""Tests, in folders that mirror the packages; a package itself, so that the mirror folders do not hide them."""
