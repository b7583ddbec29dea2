"""`dcgan-dist doctor`: is this machine ready for this run, and if not, what can be done about it?"""
