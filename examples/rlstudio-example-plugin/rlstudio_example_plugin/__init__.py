"A plugin of one of each kind: a world, a network, an algorithm, a sink and a command. Nothing is imported here, so listing stays cheap."
