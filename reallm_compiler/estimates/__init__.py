"""What a compile, a calibration and a tuning take, from shapes and measured rates: before any work.

`work` counts operations, `rates` says what each costs one core, `nodes` shares them out among
machines and `steps` puts it together.
"""
