"""Drawings of things for `scenes`, in the letters of `sprite_parts`; c and g are the colours that a caption names."""

# Rows 1..14, left halves: round, tall and square flask.
FLASKS = """
........ ......ww ........
......ww ......ww ......ww
......ww ......ee ......ww
......ee ......ee ......ee
......ee .....eee ......ee
....eeee .....ccc ...eeeee
...ecccc .....ccc ...ccccc
..eccccc .....ecc ...ecccc
..cecccc .....ecc ...ecccc
..cecccc .....ecc ...ecccc
..cccccc .....ccc ...ccccc
...ccccc .....ccc ...ccccc
....cccc .....ccc ...ccccc
........ ......cc ........
"""

# Rows 1..14, left halves: round and kite-shaped shield.
SHIELDS = """
.....mmm ..mmmmmm
...mmmcc ..mccccc
..mmcccc ..mccccc
..mccccc ..mccccm
.mmccccc ..mcccmm
.mcccccm ..mccccm
.mccccmm ..mccccc
.mccccmm ..mccccc
.mcccccm ..mmcccc
.mmccccc ...mcccc
..mccccc ...mmccc
..mmcccc ....mmcc
...mmmcc .....mmc
.....mmm ......mm
"""

# Rows 1..14, left half.
RING = """
......cc
.....ccc
.....ccc
......cc
.....mmm
....mmm.
...mmm..
...mm...
...mm...
...mm...
...mmm..
....mmm.
.....mmm
........
"""

# Rows 1..14, whole, pointing right.
SWORD = """
.............mm.
............mmm.
...........mmm..
..........mmm...
.........mmm....
........mmm.....
.......mmm......
.cc...mmm.......
.ccc.mmm........
..ccccm.........
...ccc..........
..cccccc........
.ccc..cc........
.cc.............
"""

# Rows 0..15 and columns 10..14, in the hand of a walker: sword, axe, shield, staff.
HELD = """
..... ..... ..... .....
..... ..... ..... ..g..
..m.. ..... ..... .ggg.
..m.. mmmm. ..... .ggg.
..m.. mmmm. ..... ..g..
..m.. mmmm. ..... ..g..
..m.. mmmm. mmmmm ..g..
..m.. ..w.. mgggm ..g..
..m.. ..w.. mgggm ..g..
.www. ..w.. mgggm ..g..
..w.. ..w.. mgggm ..g..
..w.. ..w.. .mgm. ..g..
..... ..w.. ..m.. ..g..
..... ..w.. ..... ..g..
..... ..... ..... ..g..
..... ..... ..... .....
"""
