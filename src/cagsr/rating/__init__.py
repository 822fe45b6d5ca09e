"""Blind human rating of responses: items, rating page, ratings database, agreement and export."""
