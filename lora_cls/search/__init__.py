"""A search for the best settings: what is tried, by whom, when a trial is stopped, and what came of it.

Reading order: `space` (what may be tried), `objective` (what trials are compared by), `stopping` (when one ends early),
`folder` (the files, and Optuna's journal), `trial` (the process that trains one). Needs the extra `sweep`.
"""
