"""Plug-ins for other trainers."""
