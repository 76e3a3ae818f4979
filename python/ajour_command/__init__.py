"""The `ajour` command's first step, in a package of its own: it must run where `import ajour` fails."""
