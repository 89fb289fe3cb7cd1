from minatar.gym import register_envs

register_envs()
