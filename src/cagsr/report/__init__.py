"""Reports: a run as one HTML file without network: curves, comparison, before and after, candidates and attention."""

from cagsr.report.page import write_report

__all__ = ["write_report"]
