"A plugin of one of each kind: a world, a network, an algorithm, a sink, an engine and a command. Nothing is imported here, so listing stays cheap."
