"""The public sources, rebuilt from where they were published.

`sources` is the table: repository, commit, paths. `download` fetches, one module per family of formats reads
(`tables`, `dialogues`, `mails`), `rows` cleans and splits, `build` writes and compares.
"""
