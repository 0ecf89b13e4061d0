"""The report of a run: figures from its files and its store, and one HTML page that holds them.

``figures`` computes, ``charts`` draws, ``page`` puts both into one file. See docs/report.md.
"""
