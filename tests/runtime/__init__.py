"""Decisions of worker and buffer, with real threads and a transport that answers from a script.

Each shows one decision that a real destination cannot be made to ask for at will. That the decision is right for real
destinations is shown in tests/contract.
"""
