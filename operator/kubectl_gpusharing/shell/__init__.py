"""What may a person type, which cluster does the command contact, and where is the output written?"""
