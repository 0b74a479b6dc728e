"""What is measured in the tiny web: exams, the ladder, its base models and their build, and the
findings of the papers over several seeds.

It uses the core and `tinyweb`; `bench`, `course` and the command line may import it.
"""
