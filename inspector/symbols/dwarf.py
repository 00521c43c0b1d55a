class Dwarf:
    pass
