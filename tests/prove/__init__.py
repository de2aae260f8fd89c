"""`make prove`: the promises about money, over real processes. `make prove-teeth`: that the proofs can fail."""
