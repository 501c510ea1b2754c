"""How questions about screens are put, and yes and no; "{}" is what is asked about."""

ASK = {
    "ground": {
        "en": ("Point to the {}.", "Where is the {}?", "Give the point of the {}."), "zh": ("指出{}。", "{}在哪里?", "给出{}的坐标。")},
    "box": {"en": ("Box the {}.", "Give the box of the {}."), "zh": ("框出{}。", "给出{}的边框。")},
    "refer": {"en": ("What is at {}?", "Which element is at {}?"), "zh": ("{}是什么?", "{}处是哪个元素?")},
    "read": {"en": ("Read the text in {}.", "What does it say in {}?"), "zh": ("读出{}里的文字。", "{}里写着什么?")},
    "read_all": {
        "en": ("Read all text, line by line.", "Write down all text on the screen from top to bottom."), "zh": ("逐行读出所有文字。", "从上到下写出界面上的全部文字。")},
    "caption": {"en": ("Describe the screen.", "What does this screen show?"), "zh": ("描述这个界面。", "这个界面显示了什么?")},
    "act": {"en": ("Goal: {} Next action?", "{} What is the next action?"), "zh": ("目标：{}下一步操作?", "{}下一步做什么?")}}
# Of a state the question that is true of it, and the one that is not.
STATES = {
    "on": {"en": ("Is the {} on?", "Is the {} off?"), "zh": ("{}是打开的吗?", "{}是关闭的吗?")},
    "off": {"en": ("Is the {} off?", "Is the {} on?"), "zh": ("{}是关闭的吗?", "{}是打开的吗?")},
    "checked": {"en": ("Is the {} checked?", "Is the {} unchecked?"), "zh": ("{}已选中吗?", "{}未选中吗?")},
    "unchecked": {"en": ("Is the {} unchecked?", "Is the {} checked?"), "zh": ("{}未选中吗?", "{}已选中吗?")},
    "expanded": {"en": ("Is the {} expanded?", "Is the {} collapsed?"), "zh": ("{}是展开的吗?", "{}是收起的吗?")},
    "collapsed": {"en": ("Is the {} collapsed?", "Is the {} expanded?"), "zh": ("{}是收起的吗?", "{}是展开的吗?")},
    "disabled": {"en": ("Is the {} disabled?", "Can the {} be used?"), "zh": ("{}被禁用了吗?", "{}可以使用吗?")},
    "enabled": {"en": ("Can the {} be used?", "Is the {} disabled?"), "zh": ("{}可以使用吗?", "{}被禁用了吗?")}}
YES = {"en": ("Yes.", "No."), "zh": ("是。", "不是。")}
EMPTY = {"en": "It is empty.", "zh": "空的。"}
VALUE = {"en": ("What is the value of the {}?", "What is in the {}?"), "zh": ("{}的值是什么?", "{}里是什么?")}
WHICH = {
    "tab": {"en": ("Which tab is selected?", "What tab is open?"), "zh": ("选中了哪个标签?", "当前是哪个标签?")},
    "radio": {"en": ("Which radio button is selected?", "Which option is chosen?"), "zh": ("选中了哪个单选框?", "选了哪个选项?")}}
GOALS = {
    "press": {"en": ("Press the {}.", "Tap the {}."), "zh": ("点击{}。", "按一下{}。")},
    "open": {"en": ("Open the {}.", "Go to the {}."), "zh": ("打开{}。", "进入{}。")},
    "on": {"en": ("Turn on the {}.", "Switch the {} on."), "zh": ("打开{}。", "开启{}。")},
    "off": {"en": ("Turn off the {}.", "Switch the {} off."), "zh": ("关闭{}。", "关掉{}。")},
    "checked": {"en": ("Check the {}.", "Select the {}."), "zh": ("勾选{}。", "选中{}。")},
    "unchecked": {"en": ("Uncheck the {}.", "Clear the {}."), "zh": ("取消勾选{}。", "取消选中{}。")},
    "type": {"en": ("Enter “{1}” in the {0}.", "Set the {0} to “{1}”."), "zh": ("在{0}中输入“{1}”。", "把{0}填为“{1}”。")},
    "find": {"en": ("Find the {}.", "Show the {}."), "zh": ("找到{}。", "显示{}。")}}
ENTRIES = {
    "en": ("Anna", "London", "tea", "25 June", "Main Street 8", "hello", "blue", "2048"), "zh": ("小明", "上海", "绿茶", "6月25日", "人民路8号", "你好", "蓝色", "2048")}
