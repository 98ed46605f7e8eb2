"""Prepare int8: find calibration ranges, recover accuracy, choose the blocks that stay in float."""
