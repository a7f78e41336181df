"""Chats as users of other libraries would write them: the straightforward program, with our simple protocol on /ws.

Each takes its port from PORT.
"""
