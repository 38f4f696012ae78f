"""How a broker is reached: its addresses, its connection, and what its errors mean. Sinks and consumers share it.

What belongs here: what knows a client library, and neither writes nor reads events. What does not: keys, fields and
messages (wire), or what is done about an error (delivery).
"""
