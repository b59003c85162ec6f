"""Print the names of an even share of the mutants of the current folder: ``sample.py 0.25``."""

import random
import sys

from mutmut.mutation.file_mutation import mutate_file_contents
from mutmut.utils.file_utils import walk_mutatable_files
from mutmut.utils.format_utils import get_mutant_name

names = [
    get_mutant_name(path, name)
    for path in sorted(walk_mutatable_files())
    for name in mutate_file_contents(str(path), path.read_text()).mutant_names
]
step = round(1 / float(sys.argv[1]))
print('\n'.join(names[random.Random(0).randrange(step) :: step]))
