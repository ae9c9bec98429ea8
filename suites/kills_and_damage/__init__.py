"""Kills at random and exact moments, damaged and hostile files."""
