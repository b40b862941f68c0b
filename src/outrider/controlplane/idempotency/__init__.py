"""Where the guard remembers keyed calls: a file (`sqlite`), or a server that several guards share (`redis`); and how it
asks the app about a call whose end nobody has heard (`app`). `fields` is how both write answers down."""
