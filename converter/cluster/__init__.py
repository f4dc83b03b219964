"""Work on several machines with Ray: connect, check the nodes, and call functions there.

Ray decides where and when something runs, and starts its processes. This folder only opens and closes the connection,
checks that all nodes would compute the same, carries errors of lensconv back, and says what was lost with a node.
"""
