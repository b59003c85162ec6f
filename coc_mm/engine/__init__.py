"""Hooks and optimizer constructors."""

from coc_mm.engine.fault_tolerance.atomic_checkpoint_hook import AtomicCheckpointHook
from coc_mm.engine.fault_tolerance.preemption import PreemptionHook
from coc_mm.engine.fault_tolerance.schedule_on_resume_hook import ScheduleOnResumeHook
from coc_mm.engine.fault_tolerance.seeding import StepSeedHook
from coc_mm.engine.fault_tolerance.validate_on_resume_hook import ValidateOnResumeHook
from coc_mm.engine.hooks.class_check_hook import ClassCheckHook
from coc_mm.engine.hooks.nonfinite_hook import NonFiniteHook
from coc_mm.engine.hooks.trial_hook import TrialHook
from coc_mm.engine.layer_decay import LayerDecayOptimWrapperConstructor
