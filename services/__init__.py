"""The services, each a process of its own. They meet on the bus alone."""
