"""One address of a live guest: its walk, its frame, who owns that and who maps it."""

import inspector

with inspector.boot(memory="512M") as guest:
    pid = guest.spawn("/labs/touch 8M --no-thp")
    guest.run(f"until [ -s /tmp/spawn-{pid}.log ]; do sleep 0.1; done").check()
    with guest.paused():
        task = guest.task(pid)
        area = max(task.vmas(), key=lambda vma: vma.size)
        walk = task.walk(area.start)
        for step in walk.steps:
            print(f"{step.level.name} {step.index:3} {step.entry:#018x} {' '.join(step.flags)}")
        assert walk.pfn is not None
        print(guest.page(walk.pfn))
        owner, label = guest.owners().of(walk.pfn)
        print("owner:", owner.name.lower(), label)
        for alias in guest.mapped_by(walk.pfn):
            print("mapped by", alias.task.comm if alias.task else alias.region, f"at {alias.va:#x}")
