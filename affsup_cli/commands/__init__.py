"""One file a subcommand: parse, call, print. All but typer is imported inside functions, so that help is instant."""
