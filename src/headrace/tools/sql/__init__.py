"""One read-only SQL query on one database, for a model.

    tool        the tool, and what makes it
    location    which database a URL names
    process     asks in a process of its own, which is ended when it is late
    child       is that process: it holds no key of this server, and not more memory than it may
    sqlite  duckdb  postgresql     read one kind of database, which itself refuses to be written
    reading     what is asked of each, and what each answers
    table  values                  rows within limits, as JSON
    outline     the tables and columns in words

Nothing here looks at the text of a query to find out what it does: that is known to the database only. And nothing is
imported here, so that the child starts without what only the server needs.
"""
