"""Texts with and without personal data and credentials, and how well redaction tells them apart.

python -m tests.corpus          shows the scorecard
python -m tests.corpus --write  writes it into docs/privacy.md
"""
