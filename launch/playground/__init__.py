"""The playground: a page on which one sees what could come next, chooses it, and sees where the network looks."""
