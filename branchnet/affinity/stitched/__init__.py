"""The stitching loss: how well the rest of one network works on another network's features, through a stitch.

`stitching_loss` has the measure, `pair_fits` the stitches between all networks, `rest_losses` what their outputs lose,
`labelled_losses` the same by a user's losses and labels, `loss_cache` what is kept on disk.
"""
