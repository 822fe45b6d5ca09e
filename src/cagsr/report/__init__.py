"""A run as one HTML file without network: curves, comparison, before and after, candidates and their attention."""

from cagsr.report.page import write_report

__all__ = ["write_report"]
