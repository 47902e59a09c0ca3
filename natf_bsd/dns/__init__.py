"""Look-ups, bytes to bytes [3.2 step 1-2]; `en.lookups` puts the parts in order.

`carrier` takes a message out of its packet, `question` reads what it is about, `names` says whether that is ours,
`queries` whether it was asked; `rewrite` and `reverse` make the answer.
"""
